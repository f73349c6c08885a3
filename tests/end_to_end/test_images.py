"""A collection on images: one row for each, what may change, what a changed folder means for a store, and the commands."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.errors import ConfigError, StageError
from nullbooth_cli.model import load
from nullbooth_cli.model.denoise import denoise
from nullbooth_cli.pipeline.plan import plan
from nullbooth_cli.pipeline.state import stage_states
from nullbooth_cli.settings.captions import load_captions
from nullbooth_cli.settings.config import Config
from nullbooth_cli.settings.images import image_files, read_image
from nullbooth_cli.store import Store
from tests.support.builders import PROMPTS, execute, features_at, prompts_of, small_config, states_of
from tests.support.doctor import findings, little, refused
from tests.support.pictures import MID, TOY, of_images, photos, picture


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store, Path]:
    """Four images with three captions, through all stages. Read only."""
    folder = photos(tmp_path_factory.mktemp("images") / "photos", [*PROMPTS[:3], PROMPTS[2]])
    config = of_images(folder.parent / "run.zarr", folder)
    return config, execute(config, "schedule", "collect", "covariance", "project"), folder


def copied(collected: Any, tmp_path: Path) -> tuple[Config, Store, Path]:
    _, store, folder = collected
    place, photos = tmp_path / "run.zarr", tmp_path / "photos"
    shutil.copytree(store.path, place)
    shutil.copytree(folder, photos)
    return of_images(place, photos), Store.open(place, write=True), photos


class TestStore:
    def test_one_row_an_image(self, collected: Any) -> None:
        config, store, folder = collected
        assert store.prompts() == load_captions(str(folder)) == prompts_of(config)
        assert [prompt.text for prompt in store.prompts()] == [*PROMPTS[:3], PROMPTS[2]]
        assert len({prompt.id for prompt in store.prompts()}) == 4
        assert set(states_of(config).values()) == {"complete"}

    def test_text_is_still_shared_and_free_of_the_timestep(self, collected: Any) -> None:
        mine = {site.feature: site for site in collected[1].sites}
        assert mine["k"].timestep_free
        assert not mine["q"].timestep_free
        assert len(mine["k"].weights) == 2

    def test_features_do_not_depend_on_the_batch(self, collected: Any, tmp_path: Path) -> None:
        _, store, folder = collected
        one = execute(of_images(tmp_path / "one.zarr", folder, collect__batch_size=1), "collect")
        for site in store.sites:
            for t in range(site.num_recorded(4)):
                together = np.concatenate([features_at(store, site, t, unit) for unit in range(2)])
                alone = np.concatenate([features_at(one, site, t, unit) for unit in range(4)])
                np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4)

    def test_moments_added_up_on_the_way_are_the_same(self, collected: Any, tmp_path: Path) -> None:
        _, store, folder = collected
        folded = execute(of_images(tmp_path / "folded.zarr", folder, collect__keep="moments"), "collect")
        for site in store.sites:
            (found, _, count), (expected, _, wanted) = folded.moments.read_one(site, 0), store.moments.read_one(site, 0)
            assert count == wanted
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    def test_the_noise_of_two_images_with_one_caption_differs(self, collected: Any) -> None:
        _, store, _ = collected
        query, text = (next(site for site in store.sites if site.feature == feature) for feature in ("q", "k"))
        assert np.array_equal(*features_at(store, text, 0, 1))
        assert not np.allclose(*features_at(store, query, 0, 1), atol=1e-2)

    def test_a_folder_that_moved_is_the_same(self, collected: Any, tmp_path: Path) -> None:
        _, _, folder = copied(collected, tmp_path)
        (folder / "0.png").rename(folder / "first.png")
        (folder / "0.txt").rename(folder / "first.txt")
        folder.rename(tmp_path / "elsewhere")
        assert set(states_of(of_images(tmp_path / "run.zarr", tmp_path / "elsewhere")).values()) == {"complete"}

    @pytest.mark.parametrize("what", ["image", "caption"])
    def test_what_was_edited_is_taken_out_and_collected_anew(
        self, collected: Any, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, store, folder = copied(collected, tmp_path)
        if what == "image":
            picture(99).save(folder / "1.png")
        else:
            (folder / "1.txt").write_text(PROMPTS[5])
        found = stage_states(config, prompts_of(config), store)
        assert found["collect"].state == "stale"
        assert found["collect"].only_lost_prompts
        assert f"removed or edited: '{PROMPTS[1]}'" in str(found["collect"].stale_because[0])
        with pytest.raises(StageError, match="was made with other settings or inputs") as caught:
            execute(config, "collect", store=store)
        assert "force=True) to take them out" in caught.value.hint
        ran: list[Prompt] = []
        monkeypatch.setattr(
            "nullbooth_cli.collect.units.denoise",
            lambda pipe, path, members, **how: (ran.extend(p for _, p in members), denoise(pipe, path, members, **how))[1],
        )
        execute(config, "collect", store=store, force=True)
        assert ran == [load_captions(str(folder))[1]]
        execute(config, "covariance", "project", store=store, force=True)
        assert set(states_of(config).values()) == {"complete"}
        assert store.rows[1] is None

    def test_images_can_be_added(self, collected: Any, tmp_path: Path) -> None:
        config, store, folder = copied(collected, tmp_path)
        picture(50).save(folder / "a.webp")
        (folder / "a.txt").write_text(PROMPTS[0])
        assert states_of(config)["collect"] == "partial"
        execute(config, "collect", "covariance", store=store)
        store.reload()
        assert store.rows[4] == next(prompt for prompt in load_captions(str(folder)) if prompt not in collected[1].prompts())
        assert states_of(config) == {"schedule": "complete", "collect": "complete", "covariance": "complete", "project": "stale"}

    def test_path_and_images_are_not_mixed(self, collected: Any) -> None:
        _, store, _ = collected
        on_path = small_config(store.path, **MID)
        found = stage_states(on_path, prompts_of(on_path), store)
        assert "collect.latents: images -> path" in [str(because) for because in found["collect"].stale_because]

    def test_another_autoencoder_is_another_model(self, pipe: Any) -> None:
        before = [load.weights_digest(pipe, encodes=encodes) for encodes in (False, True)]
        weight = pipe.vae.quant_conv.weight
        untouched = weight.clone()
        weight += 1e-3
        try:
            after = [load.weights_digest(pipe, encodes=encodes) for encodes in (False, True)]
        finally:
            weight.copy_(untouched)
        assert after[0] == before[0]
        assert after[1] != before[1]

    def test_attention_maps_stand_over_the_image_itself(self, collected: Any, tmp_path: Path, pipe: Any) -> None:
        _, store, folder = copied(collected, tmp_path)
        maps = {"attention_prompts": [PROMPTS[2]], "attention_timesteps": 2, "visual_attention_map": True}
        config = of_images(store.path, folder, **{f"collect__{key}": value for key, value in maps.items()})
        execute(config, "collect", store=store)
        for prompt in store.prompts()[2:]:
            pixels = torch.tensor(np.array(read_image(image_files(str(folder))[prompt.image or ""]))).permute(2, 0, 1)[None]
            with torch.no_grad():
                drawn = pipe.vae.decode(pipe.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean).sample
            expected = (drawn[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255
            assert np.abs(store.attention.read(prompt).image - expected.numpy()).max() <= 1


class TestRefused:
    def test_a_size_that_the_pipeline_does_not_run_at(self, pipe: Any, tmp_path: Path) -> None:
        config = of_images(tmp_path / "run.zarr", photos(tmp_path / "photos", PROMPTS[:2], width=40, height=40))
        with pytest.raises(ConfigError, match=r"0\.png is 40 x 40 pixels, and the pipeline runs at 32 x 32") as caught:
            execute(config, "collect")
        assert "collect.width: 40" in caught.value.hint

    def test_one_image_that_is_not_like_the_others_before_anything_is_collected(self, tmp_path: Path) -> None:
        folder = photos(tmp_path / "photos", PROMPTS[:4])
        picture(3, 32, 40).save(folder / "3.png")
        config = of_images(tmp_path / "run.zarr", folder)
        with pytest.raises(ConfigError, match=r"3\.png is 32 x 40 pixels"):
            execute(config, "collect")
        (folder / "3.png").write_bytes((folder / "2.png").read_bytes()[:200])
        with pytest.raises(ConfigError, match=r"cannot read the image .*3\.png"):
            execute(config, "collect")
        assert states_of(config)["collect"] == "missing"


class TestCommands:
    def nullbooth(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments), prog_name="nullbooth")

    def test_a_store_needs_no_folder_to_be_looked_at_and_says_so_where_it_does(self, collected: Any, tmp_path: Path) -> None:
        config, store, folder = copied(collected, tmp_path)
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
        half = str(tmp_path / "half.zarr")
        assert self.nullbooth("collect", "-c", str(tmp_path / "c.yaml"), "-s", half, "--limit", "1").exit_code == 0
        (folder / "3.png").unlink()
        (folder / "3.txt").unlink()
        answer = self.nullbooth("status", "-s", str(store.path), "--json")
        assert answer.exit_code == 0
        assert self.nullbooth("inspect", "-s", str(store.path)).exit_code == 0
        goes_on = self.nullbooth("collect", "-s", half)
        assert goes_on.exit_code == 2
        assert f"the image of '{PROMPTS[2]}'" in goes_on.stderr
        assert "set collect.images" in goes_on.stderr
        goes_on = self.nullbooth("collect", "-s", half, "--set", f"collect.images={collected[2]}")
        assert goes_on.exit_code == 0, goes_on.stderr

    def test_a_dry_run_counts_images(self, tmp_path: Path) -> None:
        config = of_images(tmp_path / "run.zarr", TOY, collect__batch_size=8)
        (planned,) = plan(("collect",), config, prompts_of(config), None, device="cpu")
        assert planned.units_total == 3
        assert not (tmp_path / "run.zarr").exists()

    def test_doctor_looks_at_every_image(self, tmp_path: Path) -> None:
        folder = photos(tmp_path / "photos", PROMPTS)
        config = little(tmp_path / "run.zarr", collect__latents="images", collect__images=str(folder))
        every = findings(config)
        assert {finding.verdict for finding in every.values()} == {"ok"}, every
        assert every["prompts"].text == f"8 captioned images in {folder}"
        assert every["images"].text == "all can be read, and are 32 x 32 pixels"
        (folder / "5.png").write_bytes((folder / "4.png").read_bytes()[:200])
        every = findings(config)
        refused(every["images"], "5.png", "save it again")
        assert not every["probe"].checked
        (folder / "5.txt").unlink()
        refused(findings(config)["prompts"], "no caption for", "5.png")
        shutil.rmtree(folder)
        photos(folder, PROMPTS, width=64, height=64)
        refused(findings(config)["probe"], "0.png is 64 x 64 pixels, and the pipeline runs at 32 x 32")
