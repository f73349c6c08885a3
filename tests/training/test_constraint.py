"""Training under a constraint keeps the outputs on the collected inputs: with every optimizer, in full or as LoRA.

Drift is measured on the stored vectors themselves, and `Constraint.drift` is compared with that.
"""

import multiprocessing
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import nn

import nullbooth_cli as nb
from nullbooth_cli.errors import ConfigError, ModelError
from nullbooth_cli.model.denoisers import denoiser_of
from nullbooth_cli.nullspace.usable import usable_projectors
from nullbooth_cli.settings.config import build_config
from nullbooth_cli.store import Store
from nullbooth_cli.training.constraint import BIAS, NOT_IN_STORE, OTHER_ADAPTER
from tests.support import tiny_training as training
from tests.support.builders import PROMPTS, execute
from tests.support.pages import python_of
from tests.support.tiny import saved
from tests.support.tiny_training import (
    LAYER,
    OPTIMIZERS,
    WEIGHTS,
    adamw,
    add_lora,
    changes,
    drift_on_inputs,
    fresh_unet,
    loss_of,
    prepared,
    train,
    trainable,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class TestEveryOptimizer:
    @pytest.mark.parametrize("kind", ["full", "lora"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_does_not_move_preserved_outputs(
        self, exact: Store, store: nb.OpenStore, before: dict[str, torch.Tensor], name: str, kind: str
    ) -> None:
        unet = prepared(kind)
        constraint = nb.constrain(unet, store)
        train(unet, OPTIMIZERS[name](trainable(unet)), range(10))
        found = constraint.drift()
        assert set(found) == set(WEIGHTS)
        for weight, change in changes(unet, before).items():
            assert torch.linalg.norm(change) > 1e-2 * torch.linalg.norm(before[weight]), "it does train"
            assert drift_on_inputs(exact, weight, change, before[weight]) <= 1e-6
            assert found[weight] <= 1e-6

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_would_without_the_constraint(self, exact: Store, before: dict[str, torch.Tensor], name: str) -> None:
        unet = fresh_unet().requires_grad_(False)
        for weight in WEIGHTS:
            unet.get_parameter(weight).requires_grad_(True)
        train(unet, OPTIMIZERS[name](trainable(unet)), range(10))
        for weight, change in changes(unet, before).items():
            assert drift_on_inputs(exact, weight, change, before[weight]) > 1e-2


def test_drift_is_that_of_the_stored_vectors(exact: Store, store: nb.OpenStore, before: dict[str, torch.Tensor]) -> None:
    """Also where there is some: a frozen adapter that nobody constrained acts as well."""
    unet = prepared("lora")
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
        if "lora_" in name:
            parameter.requires_grad_(False)
    for weight in WEIGHTS:
        unet.get_parameter(weight.replace("weight", "base_layer.weight")).requires_grad_(True)
    constraint = nb.constrain(unet, store)
    train(unet, adamw(trainable(unet)), range(2))
    found, expected = constraint.drift(), changes(unet, before)
    for weight in WEIGHTS:
        assert found[weight] == pytest.approx(drift_on_inputs(exact, weight, expected[weight], before[weight]), rel=1e-6)
        assert found[weight] > 0.1
    unet.disable_adapters()
    assert max(constraint.drift().values()) <= 1e-6


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_outlook_is_of_the_captions_and_the_weights_that_read_them(store: nb.OpenStore, kind: str) -> None:
    constraint = nb.constrain(prepared(kind), store)
    texts = torch.randn(2, 16, 96, generator=torch.Generator().manual_seed(0))
    found = constraint.outlook(texts, trains_word=True)
    site = next(site for site in store.sites() if WEIGHTS[1] in site.weights)
    rows, projector = texts.double().flatten(0, 1).numpy(), store.projector(site).dense()
    kept = np.trace(projector @ store.moment(site).second_moment) / np.trace(store.moment(site).second_moment)
    assert found.subject == pytest.approx(np.square(rows @ projector).sum() / np.square(rows).sum(), rel=1e-9)
    assert found.preserved == pytest.approx(kept, abs=1e-12)
    assert (found.null_dim, found.dim, found.trains_word) == (store.projector(site).null_dim, 96, True)
    with pytest.raises(ConfigError, match="no constrained weight that trains reads only texts of 64 dimensions"):
        constraint.outlook(torch.randn(2, 16, 64))


def test_there_is_no_outlook_where_no_weight_that_reads_the_text_trains(store: nb.OpenStore) -> None:
    unet = fresh_unet().requires_grad_(False)
    unet.get_parameter(WEIGHTS[0]).requires_grad_(True)
    with pytest.raises(ConfigError, match="no constrained weight that trains reads only texts of 96 dimensions"):
        nb.constrain(unet, store).outlook(torch.randn(2, 16, 96))


def test_a_site_without_a_null_space_stays_as_it_is(exact: Store, tmp_path: Path, before: dict[str, torch.Tensor]) -> None:
    """As `project.empty: freeze` leaves it."""
    place = shutil.copytree(exact.path, tmp_path / "run.zarr")
    emptied = Store.open(place)
    site = next(site for site in emptied.sites if site.feature == "q")
    emptied.projectors.write_cut(site, 0, emptied.projectors.read_cut(site, 0)._replace(null_dim=0, leakage=0.0))
    unet = fresh_unet()
    constraint = nb.constrain(unet, nb.open_store(place))
    assert constraint.report().constrained[WEIGHTS[0]] == (0, site.dim)
    train(unet, adamw(trainable(unet)), range(3))
    moved = {weight for weight, change in changes(unet, before).items() if change.any()}
    assert moved == set(WEIGHTS) - set(site.weights)
    assert constraint.drift()[WEIGHTS[0]] == 0.0


def test_averaged_weights_are_constrained_too(exact: Store, store: nb.OpenStore, tmp_path: Path, before: Any) -> None:
    unet = fresh_unet()
    nb.constrain(unet, store)
    average, optimizer = EMAModel(unet.parameters(), decay=0.9), adamw(trainable(unet))
    for step in range(6):
        train(unet, optimizer, [step])
        average.step(unet.parameters())
    last = changes(unet, before)
    average.store(unet.parameters())
    average.copy_to(unet.parameters())
    unet.save_pretrained(tmp_path)
    average.restore(unet.parameters())
    found = changes(UNet2DConditionModel.from_pretrained(tmp_path), before)
    for weight in WEIGHTS:
        assert torch.linalg.norm(found[weight] - last[weight]) > 1e-2 * torch.linalg.norm(last[weight]), "an average"
        assert drift_on_inputs(exact, weight, found[weight], before[weight]) <= 1e-6
        torch.testing.assert_close(changes(unet, before)[weight], last[weight], rtol=0, atol=0)


class TestAccelerate:
    def run(self, store: nb.OpenStore, precision: str) -> tuple[Any, Any, Any, nb.Constraint]:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        unet = fresh_unet()
        unet.enable_gradient_checkpointing()
        constraint = nb.constrain(unet, store)
        return accelerator, *accelerator.prepare(unet, adamw(trainable(unet))), constraint

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_mixed_precision_checkpointing_and_resuming(self, store: nb.OpenStore, tmp_path: Path, precision: str) -> None:
        accelerator, unet, optimizer, constraint = self.run(store, precision)

        def steps(which: range, unet: Any, optimizer: Any) -> None:
            for step in which:
                optimizer.zero_grad()
                accelerator.backward(loss_of(unet, step))
                accelerator.clip_grad_norm_(unet.parameters(), 1.0)
                optimizer.step()

        steps(range(3), unet, optimizer)
        accelerator.save_state(tmp_path)
        steps(range(3, 5), unet, optimizer)
        wanted = accelerator.unwrap_model(unet).state_dict()
        assert max(constraint.drift().values()) <= 1e-6
        accelerator, unet, optimizer, constraint = self.run(store, precision)
        accelerator.load_state(tmp_path)
        steps(range(3, 5), unet, optimizer)
        assert max(constraint.drift().values()) <= 1e-6
        for key, tensor in accelerator.unwrap_model(unet).state_dict().items():
            torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=1e-4, msg=key)


def test_two_processes_train_as_one(exact: Store, store: nb.OpenStore, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    start = multiprocessing.get_context("forkserver").Process
    arguments = [(rank, environment, exact.path, tmp_path / str(rank)) for rank in range(2)]
    workers = [start(target=training.launched, args=each, daemon=True) for each in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    for kind in ("full", "lora"):
        unet = prepared(kind)
        nb.constrain(unet, store)
        optimizer = adamw(trainable(unet))
        for step in range(4):
            optimizer.zero_grad()
            sum(loss_of(unet, step, rank) / 2 for rank in range(2)).backward()
            nn.utils.clip_grad_norm_(trainable(unet), 1.0)
            optimizer.step()
        for rank in range(2):
            left = torch.load(tmp_path / f"{rank}")[kind]
            assert left["wrapper"] == "DistributedDataParallel"
            assert max(left["drift"].values()) <= 1e-6
            for key, tensor in unet.state_dict().items():
                # Adam makes a whole step of a gradient that is all but zero, whatever its sign: some entries differ by more.
                assert torch.linalg.norm(left["state"][key] - tensor) <= 1e-3 * torch.linalg.norm(tensor), key


class TestWhatIsNotProtected:
    def test_is_frozen(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        report = nb.constrain(unet, store).report()
        assert set(report.constrained) == set(WEIGHTS)
        assert report.constrained[WEIGHTS[0]] == (store.projector(f"{LAYER}.q").null_dim, 80)
        assert len(report.frozen) == len(list(unet.parameters())) - 4
        assert (report.safe, report.unprotected) == ((), {})
        assert f"  {WEIGHTS[0]}  48 of 80 dimensions" in str(report)

    def test_is_refused(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        with pytest.raises(ConfigError, match=rf"(?s)without a constraint:.*: {NOT_IN_STORE}\n  1, such as .*: {BIAS}"):
            nb.constrain(unet, store, unprotected="refuse")
        assert len(trainable(unet)) == len(list(unet.parameters())), "nothing was changed"
        unet.requires_grad_(False)
        unet.get_parameter(WEIGHTS[1]).requires_grad_(True)
        assert list(nb.constrain(unet, store, unprotected="refuse").report().constrained) == [WEIGHTS[1]]

    def test_is_allowed_with_a_warning(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        with pytest.warns(UserWarning, match=NOT_IN_STORE):
            constraint = nb.constrain(unet, store, unprotected="allow")
        assert constraint.report().unprotected[f"{LAYER}.to_out.0.bias"] == BIAS
        assert len(constraint.report().unprotected) == len(trainable(unet)) - 4

    def test_shows_when_it_is_let_loose_later(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        constraint = nb.constrain(unet, store)
        unet.requires_grad_(True)
        assert constraint.report().unprotected[f"{LAYER}.to_out.0.bias"] == BIAS

    def test_of_a_lora_is_what_the_store_does_not_know(self, store: nb.OpenStore) -> None:
        unet = prepared("lora")
        report = nb.constrain(unet, store).report()
        assert list(report.constrained) == [w.replace("weight", "lora_A.default.weight") for w in WEIGHTS]
        assert list(report.safe) == [w.replace("weight", "lora_B.default.weight") for w in WEIGHTS]
        assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.lora_A.default.weight" in report.frozen

    @pytest.mark.parametrize("change", [{"use_dora": True}, {"lora_bias": True}], ids=["DoRA", "a bias in LoRA"])
    def test_variants_of_lora(self, store: nb.OpenStore, change: dict[str, Any]) -> None:
        unet = fresh_unet()
        add_lora(unet, target_modules=[f"{LAYER}.to_out.0"], **change)
        expected = OTHER_ADAPTER if "use_dora" in change else BIAS
        with pytest.raises(ConfigError, match=expected):
            nb.constrain(unet, store, unprotected="refuse")

    def test_another_kind_of_adapter(self, store: nb.OpenStore) -> None:
        from peft import LoHaConfig, inject_adapter_in_model

        unet = fresh_unet().requires_grad_(False)
        inject_adapter_in_model(LoHaConfig(r=2, target_modules=[f"{LAYER}.to_q"]), unet)
        with pytest.raises(ConfigError, match=rf"(?s)none of the 4 protected weights would train\n.*: {OTHER_ADAPTER}"):
            nb.constrain(unet, store)

    def test_a_word_that_means_nothing(self, store: nb.OpenStore) -> None:
        with pytest.raises(ConfigError, match="unprotected='ignore' is not a choice"):
            nb.constrain(fresh_unet(), store, unprotected="ignore")  # type: ignore[arg-type]


class TestLora:
    def test_with_a_frozen_a(self, exact: Store, store: nb.OpenStore, before: dict[str, torch.Tensor]) -> None:
        unet = prepared("lora")
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_("lora_B" in name)
        nb.constrain(unet, store)
        train(unet, adamw(trainable(unet)), range(3))
        for weight, change in changes(unet, before).items():
            assert torch.linalg.norm(change) > 0
            assert drift_on_inputs(exact, weight, change, before[weight]) <= 1e-6

    def test_several_adapters_and_ranks(self, store: nb.OpenStore) -> None:
        from peft import LoraConfig

        unet = prepared("lora")
        with pytest.warns(UserWarning, match="multiple adapters"):  # PEFT's own
            unet.add_adapter(LoraConfig(r=2, rank_pattern={f"{LAYER}.to_q": 3}, target_modules=["to_q", "to_k"]), "second")
        unet.set_adapters(["default", "second"], [0.5, 2.0])
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_("lora_" in name)
        constraint = nb.constrain(unet, store)
        assert len(constraint.report().constrained) == 6
        train(unet, adamw(trainable(unet)), range(3))
        assert max(constraint.drift().values()) <= 1e-6

    def test_that_was_trained_without_the_constraint(self, store: nb.OpenStore) -> None:
        unet = prepared("lora")
        train(unet, adamw(trainable(unet)), range(2))
        with pytest.raises(ModelError, match=r"LoRA adapter 'default' of .* was trained without this constraint"):
            nb.constrain(unet, store)
        assert "parametrizations" not in dict(unet.get_submodule(f"{LAYER}.to_q.lora_A.default").named_children())

    def test_wrapped_by_peft_itself(self, store: nb.OpenStore) -> None:
        from peft import LoraConfig, get_peft_model

        wrapped = get_peft_model(fresh_unet(), LoraConfig(r=2, target_modules=["to_q"]))
        assert len(nb.constrain(wrapped, store).report().constrained) == 1

    def test_added_later_shows(self, store: nb.OpenStore) -> None:
        from peft import LoraConfig

        unet = prepared("lora")
        constraint = nb.constrain(unet, store)
        with pytest.warns(UserWarning, match="multiple adapters"):
            unet.add_adapter(LoraConfig(r=2, target_modules=[f"{LAYER}.to_q"]), "second")
        assert constraint.report().unprotected[WEIGHTS[0].replace("weight", "lora_A.second.weight")] == OTHER_ADAPTER

    def test_merged_into_the_weight(self, store: nb.OpenStore) -> None:
        unet = prepared("lora")
        constraint = nb.constrain(unet, store)
        train(unet, adamw(trainable(unet)), range(2))
        unet.fuse_lora()
        with pytest.raises(ModelError, match=f"an adapter is merged into {LAYER}"):
            constraint.drift()


class TestMerging:
    @pytest.mark.parametrize("kind", ["full", "lora"])
    def test_leaves_a_plain_model_and_says_what_it_costs(
        self, exact: Store, store: nb.OpenStore, before: dict[str, torch.Tensor], kind: str
    ) -> None:
        unet = prepared(kind)
        names = list(dict(unet.named_parameters()))
        constraint = nb.constrain(unet, store)
        train(unet, adamw(trainable(unet)), range(4))
        loss, state = loss_of(unet, 0), unet.state_dict()
        costs = constraint.merge()
        assert sorted(dict(unet.named_parameters())) == sorted(names)
        torch.testing.assert_close(loss_of(unet, 0), loss, rtol=0, atol=0)
        assert set(unet.state_dict()) == set(state)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            rounded = {name: tensor.to(dtype).double() for name, tensor in unet.state_dict().items()}
            fake = type("Saved", (), {"state_dict": lambda _, rounded=rounded: rounded})()
            start = {name: tensor.to(dtype) for name, tensor in before.items()}
            worst = max(drift_on_inputs(exact, weight, change, start[weight]) for weight, change in changes(fake, start).items())
            assert costs[str(dtype).removeprefix("torch.")] == pytest.approx(worst, rel=1e-2)
        assert costs["float32"] <= 1e-6 < costs["float16"] < costs["bfloat16"] < 1e-2
        with pytest.raises(ConfigError, match="this constraint was merged"):
            constraint.drift()
        with pytest.raises(ConfigError, match="this constraint was merged"):
            constraint.merge()


class TestRefusals:
    def test_nothing_trains(self, store: nb.OpenStore) -> None:
        with pytest.raises(ConfigError, match="none of the 4 protected weights would train"):
            nb.constrain(fresh_unet().requires_grad_(False), store)

    def test_twice(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        nb.constrain(unet, store)
        with pytest.raises(ConfigError, match="constrained already"):
            nb.constrain(unet, store)

    def test_another_model(self, store: nb.OpenStore) -> None:
        unet = fresh_unet()
        unet.get_parameter(WEIGHTS[2]).data *= 1.1
        with pytest.raises(ConfigError, match=rf"another model.*1 weights differ, such as {re.escape(WEIGHTS[2])}"):
            nb.constrain(unet, store)


@pytest.mark.parametrize("name", ["sdxl", "pixart", "sd3"])
def test_other_architectures(tmp_path: Path, name: str) -> None:
    """Whatever the gradients are: every change that an optimizer makes lies in the null space of its weight."""
    config = build_config(
        {
            "model": str(saved(name, tmp_path)),
            "store": str(tmp_path / "run.zarr"),
            "original_knowledge_prompts": PROMPTS[:2],
            "schedule": {"num_denoising_steps": 2, "sampler_strategy": "model"},
            "collect": {"keep": "moments", "height": 16, "width": 16},
            "project": {"relative_threshold": 0.01},
        }
    )
    execute(config, "schedule", "collect", "covariance", "project")
    store = nb.open_store(config.store)
    denoiser: Any = denoiser_of(DiffusionPipeline.from_pretrained(config.model)).requires_grad_(True)
    start = {key: tensor.clone() for key, tensor in denoiser.state_dict().items()}
    projectors = store.projectors()
    constraint = nb.constrain(denoiser, store)
    assert set(constraint.report().constrained) == set(projectors)
    shared = {id(weight.projector) for weight in constraint._weights}
    assert len(shared) == len(store.sites()), "weights that share an input share a factor"
    optimizer = adamw(trainable(denoiser))
    for _ in range(2):
        optimizer.zero_grad()
        sum(denoiser.get_submodule(key.removesuffix(".weight")).weight.sin().sum() for key in projectors).backward()
        optimizer.step()
    for key, projector in projectors.items():
        change = (denoiser.state_dict()[key] - start[key]).double()
        assert torch.linalg.norm(change) > 1e-3
        torch.testing.assert_close(projector.apply(change), change, rtol=0, atol=1e-6)


def test_the_page_runs(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished[1].path, tmp_path / "runs/toy.zarr")
    monkeypatch.chdir(tmp_path)
    blocks = python_of("docs/how-to/constrain-training.md")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
        if "add_adapter" in block:
            assert len(names["constraint"].report().safe) == 40
        if "outlook" in block:
            assert names["constraint"].outlook(names["text"]).ratio > 2
    assert len(blocks) == 6
    assert 0 < names["costs"]["float32"] < names["costs"]["bfloat16"] < 1e-2
    trained = UNet2DConditionModel.from_pretrained("trained", subfolder="unet").state_dict()
    assert trained.keys() == fresh_unet().state_dict().keys()
    assert len(load_file("lora/pytorch_lora_weights.safetensors")) == 80
    # The loop of diffusers' scripts: what the saved pipeline changed is in the null space, but for the rounding of a sum.
    start, after = fresh_unet().state_dict(), UNet2DConditionModel.from_pretrained("dreambooth", subfolder="unet").state_dict()
    projectors = usable_projectors(finished[1])
    assert {key for key in start if not torch.equal(start[key].float(), after[key].float())} == set(projectors)
    for key, projector in projectors.items():
        change = (after[key] - start[key]).double()
        torch.testing.assert_close(projector.apply(change), change, rtol=0, atol=1e-6)
