"""The command `nullbooth train`, from a file to a pipeline."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from nullbooth_cli.training import checkpoint_files, output, setup
from tests.support.cli import refused, start_nullbooth
from tests.support.hub import TOKEN, running
from tests.support.phone_pictures import write_phone_pictures
from tests.support.tiny import saved
from tests.support.tiny_dreambooth import recipe


class TestTheCommand:
    @pytest.fixture
    def file(self, tmp_path: Path) -> str:
        settings = recipe(tmp_path / "out", validation_prompts=["a sks circle on a red background"]).model_dump()
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
        return str(tmp_path / "train.yaml")

    def train(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["train", "--device", "cpu", *arguments])

    def test_from_a_file_to_a_pipeline(self, file: str, tmp_path: Path) -> None:
        done = self.train("-c", file, "--json", "--set", "report_to=tensorboard")
        assert done.exit_code == 0, done.stderr
        document = json.loads(done.stdout)
        settings = {"method", "model", "pipeline", "token", "word_in", "instance_prompt", "prompts", "after", "trained"}
        settings |= {"constrained_by", "preserved"}
        assert set(document) == {"schema_version", "output", "steps", "largest_drift", "drift", *settings}
        assert document["steps"] == 4
        assert document["prompts"] == list(dict.fromkeys(document["prompts"])), "each caption once"
        assert document["prompts"][0] == document["instance_prompt"]
        out = tmp_path / "out"
        assert checkpoint_files.steps(str(out)) == [2, 4]
        assert len((out / "train.jsonl").read_text().splitlines()) == 4
        assert (out / "README.md").exists()
        assert {path.name for path in (out / "validation").iterdir()} == {"000002_0.png", "000004_0.png"}
        with Image.open(out / "validation/000004_0.png") as picture:
            assert picture.size == (32, 32)
        assert list((out / "logs").rglob("events*"))
        assert json.loads((out / "train.json").read_text())["recipe"]["learning_rate"] == 1e-2
        assert json.loads((out / "train.json").read_text())["estimate"] is None

    def test_a_model_that_cannot_be_trained_is_refused_before_torch_is_there(self, tmp_path: Path) -> None:
        folder = saved("flux", tmp_path)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxKontextPipeline"}))
        lines = "import sys; from nullbooth_cli.cli import app; sys.argv[1:] = ARGUMENTS; code = 0"
        lines = lines.replace("ARGUMENTS", repr(["train", "--set", f"model={folder}", "--set", f"output={tmp_path / 'out'}"]))
        lines += """
try:
    app()
except SystemExit as left:
    print(left.code, sorted({"torch", "diffusers", "accelerate"} & set(sys.modules)))
"""
        done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
        assert done.stdout == "6 []\n", done.stderr
        assert "error: FluxKontextPipeline cannot be trained here" in done.stderr
        assert not (tmp_path / "out").exists()

    def test_a_folder_without_weights_is_refused_first(self, tmp_path: Path) -> None:
        """Its pictures, named wrong here, would be read later."""
        folder = saved("flux", tmp_path)
        for weights in (folder / "transformer").glob("*.safetensors"):
            weights.unlink()
        settings = [f"model={folder}", f"output={tmp_path / 'out'}", "instance_images=nowhere"]
        arguments = [each for setting in settings for each in ("--set", setting)]
        refused(self.train(*arguments), 2, "transformer has a config.json and no weights")

    def test_its_messages(self, file: str, tmp_path: Path, finished: tuple[Config, Store]) -> None:
        done = self.train("-c", file, "-s", str(finished[1].path), "--set", "max_train_steps=2", "-v")
        assert done.exit_code == 0, done.stderr
        assert f"recipe {file}, into" in done.stderr
        assert f"trains 20 weights, constrained by {finished[1].path}" in done.stderr
        written = json.loads((tmp_path / "out/train.json").read_text())["estimate"]
        assert f"the null space has {written['null_dim']} of 96 dimensions and" in done.stderr
        assert set(written) == {
            *("subject", "preserved", "measured_on", "null_dim", "dim", "trains_word", "ratio", "warning"),
        }
        place, prompts = f"{tmp_path}/out", len(finished[0].original_knowledge_prompts)
        assert re.fullmatch(
            rf"{place}/pipeline is the taught pipeline: 2 steps trained 20 weights\. On the {prompts} preserved prompts their "
            r"outputs moved by [\d.]+ % of their size at most\n",
            done.stdout,
        )
        sample, evaluate = done.stderr.splitlines()[-2:]
        assert re.fullmatch(rf"next: nullbooth sample {place} '.*sks.*'", sample)
        assert evaluate.startswith(f"next: nullbooth evaluate {place}/pipeline -s {finished[1].path} --subject '")

    def test_a_plan_writes_nothing(self, file: str, tmp_path: Path, finished: tuple[Config, Store]) -> None:
        store = str(finished[1].path)
        arguments = ("-c", file, "-s", store, "--dry-run", "--set", "optimizer=prodigy")
        plan = json.loads(self.train(*arguments, "--json").stdout)
        assert (plan["dry_run"], plan["steps"], plan["steps_done"]) == (True, 4, 0)
        assert plan["train_seconds"] > 0
        assert plan["memory"]["peak"] == max(plan["memory"]["phases"].values()) < plan["device_bytes_free"]
        assert plan["memory"]["constraint"] > plan["memory"]["gradients"] > 0
        assert plan["bytes_needed"] > plan["memory"]["weights"]
        text = self.train(*arguments).stdout
        assert re.search(r"memory  [\d.]+ MB at most, [\d.]+ GB are free\n  encode captions: ", text)
        assert "  kept for the backward pass: " in text
        assert "set learning_rate to 1.0" in text
        assert not (tmp_path / "out").exists()

    def test_without_a_recipe_that_is_named(self, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """./train.yaml, or defaults and the shipped pictures where -s or --set say something; nothing at all is an error."""
        monkeypatch.chdir(tmp_path)
        assert self.train("--set", "max_train_steps=2").exit_code == 0
        assert checkpoint_files.steps("out") == [2]
        Path(file).unlink()
        refused(self.train(), 2, "no recipe: there is no ./train.yaml", "write one with nullbooth init, or give one with -c")
        done = self.train("--set", "max_train_steps=1", "--json", "-v")
        assert done.exit_code == 0, done.stderr
        assert "recipe of defaults, into runs/trained" in done.stderr
        assert json.loads(done.stdout)["output"] == "runs/trained/pipeline"

    def test_bare_pictures_of_a_phone_and_one_caption(self, file: str, tmp_path: Path) -> None:
        """With what a phone leaves beside them. A second run finds nothing to do, another resize is another run."""
        folder = tmp_path / "phone"
        write_phone_pictures(folder)
        for name in (".DS_Store", "Thumbs.db", "IMG_0412.AAE", "ideas.txt"):
            (folder / name).write_bytes(b"?")
        arguments = ("-c", file, "--set", f"instance_images={folder}", "--set", "instance_prompt=a photo of sks circle")
        done = self.train(*arguments, "--set", "max_train_steps=2")
        assert done.exit_code == 0, done.stderr
        assert "every picture has the caption of instance_prompt; not read: ideas.txt" in done.stderr
        assert "enlarged" not in done.stderr
        assert "is complete" in self.train(*arguments, "--set", "max_train_steps=2").stderr
        refused(self.train(*arguments, "--set", "resize=none"), 2, "resize: crop -> none")

    def test_what_a_phone_leaves_that_is_refused(self, file: str, tmp_path: Path) -> None:
        folder = tmp_path / "phone"
        write_phone_pictures(folder)
        arguments = ("-c", file, "--set", f"instance_images={folder}")
        refused(self.train(*arguments), 2, "no caption for", "or set instance_prompt")
        arguments = (*arguments, "--set", "instance_prompt=a sks circle")
        (folder / "IMG_0413.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
        (folder / "IMG_0414.MOV").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(100))
        refused(self.train(*arguments), 2, "IMG_0413.HEIC", "IMG_0414.MOV", "export IMG_0413.HEIC as JPEG", "move films")
        for name in ("IMG_0413.HEIC", "IMG_0414.MOV"):
            (folder / name).unlink()
        shutil.copy(folder / "IMG_0412.JPG", folder / "IMG_0412 (1).JPG")
        refused(self.train(*arguments), 2, "IMG_0412.JPG is the same image as", "remove one of them")

    def test_running_again(self, file: str, tmp_path: Path) -> None:
        """Complete is success; more steps go on; fewer are refused; another output of the same name is none of its business."""
        (tmp_path / "out/checkpoint-best").mkdir(parents=True)
        (tmp_path / "out/checkpoint-notes").write_text("mine")
        first = self.train("-c", file, "--json")
        assert first.exit_code == 0, first.stderr
        written = (tmp_path / "out/train.json").stat().st_mtime_ns
        again = self.train("-c", file, "--json", "--set", "checkpointing_steps=1", "--set", "validation_prompts=[]")
        assert (again.exit_code, again.stdout) == (0, first.stdout)
        assert again.stderr == f"the run in {tmp_path}/out is complete: 4 steps are done\n"
        refused(self.train("-c", file, "--set", "max_train_steps=2"), 2, "4 steps, more than max_train_steps: 2", "or more")
        assert (tmp_path / "out/train.json").stat().st_mtime_ns == written
        more = self.train("-c", file, "--set", "max_train_steps=5")
        assert more.exit_code == 0, more.stderr
        assert "resumes from step 4\nmax_train_steps: 4 -> 5\n" in more.stderr
        assert "5 steps trained 20 weights, without a constraint\n" in more.stdout
        assert checkpoint_files.steps(str(tmp_path / "out")) == [2, 4, 5]
        assert {"checkpoint-best", "checkpoint-notes"} < {path.name for path in (tmp_path / "out").iterdir()}

    def test_the_model_of_an_earlier_checkpoint(self, file: str, tmp_path: Path) -> None:
        """It does not train, and the run is then continued from its newest checkpoint."""
        assert self.train("-c", file, "--set", "max_train_steps=2").exit_code == 0
        assert self.train("-c", file).exit_code == 0
        early = self.train("-c", file, "--finish", "2", "--json")
        assert early.exit_code == 0, early.stderr
        assert json.loads(early.stdout)["steps"] == 2
        assert "train 3/4" not in early.stderr
        assert checkpoint_files.steps(str(tmp_path / "out")) == [2, 4]
        refused(self.train("-c", file, "--finish", "3"), 2, "has checkpoints of 2, 4 steps, and none of 3")
        refused(self.train("-c", file, "--finish", "2", "--resume-with", "learning_rate=1"), 2, "--finish does not train")
        again = self.train("-c", file, "--json")
        assert again.exit_code == 0, again.stderr
        assert json.loads(again.stdout)["steps"] == 4
        assert "resumes from step 4\n" in again.stderr

    def test_pushing(self, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What stands in the way is known before anything is trained; what cannot be pushed is pushed by the same command."""
        with running() as hub:
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
            monkeypatch.setenv("HF_TOKEN", "hf_other")
            refused(self.train("-c", file, "--push-to-hub", "me/sks"), 2, "the hub refuses the token", "hf auth login")
            monkeypatch.setenv("HF_TOKEN", TOKEN)
            hub.broken = True
            failed = self.train("-c", file, "--push-to-hub", "me/sks")
            assert failed.exit_code == 5
            assert "nothing is trained again" in failed.stderr
            hub.broken = False
            done = self.train("-c", file, "--push-to-hub", "me/sks")
            assert done.exit_code == 0, done.stderr
            assert f"is complete: 4 steps are done\npushed to {hub.url}/me/sks\n" in done.stderr
            assert 'from_pretrained("me/sks"' in hub.files["me/sks"]["README.md"].decode()

    def test_another_learning_rate(self, file: str, tmp_path: Path) -> None:
        """An accident is refused, with the option to say that it is none; the answer lasts."""
        assert self.train("-c", file, "--set", "max_train_steps=2").exit_code == 0
        accident = self.train("-c", file, "--set", "learning_rate=0.02")
        refused(accident, 2, "learning_rate: 0.01 -> 0.02", "to resume with the new values: --resume-with learning_rate=0.02")
        other = self.train("-c", file, "--set", "seed=1")
        refused(other, 2, "seed: 0 -> 1", "hint: put them back, or set another output\n")
        on_purpose = self.train("-c", file, "--resume-with", "learning_rate=0.02", "--set", "max_train_steps=3")
        assert on_purpose.exit_code == 0, on_purpose.stderr
        assert "learning_rate: 0.01 -> 0.02" in on_purpose.stderr
        history = json.loads((tmp_path / "out/train.json").read_text())["run"]["history"]
        assert history == [{"step": 2, "learning_rate": [0.01, 0.02], "max_train_steps": [2, 3]}]
        refused(self.train("-c", file), 2, "learning_rate: 0.02 -> 0.01")
        refused(self.train("-c", file, "--resume-with", "rank=4"), 2, "rank cannot change")

    def test_a_second_run_into_the_same_output(self, file: str, tmp_path: Path) -> None:
        with output.locked(str(tmp_path / "out")):
            refused(self.train("-c", file), 4, f"{tmp_path}/out/train is in use by process {os.getpid()}")

    def test_a_damaged_checkpoint(self, file: str, tmp_path: Path) -> None:
        assert self.train("-c", file, "--set", "max_train_steps=2").exit_code == 0
        (tmp_path / "out/checkpoint-000002/parameters.safetensors").write_bytes(b"")
        refused(
            self.train("-c", file), 4, "checkpoint-000002/parameters.safetensors is damaged", "move ", "train from the first step"
        )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_at_a_step(self, file: str, tmp_path: Path, number: int) -> None:
        arguments = ("-c", file, "--device", "cpu", "--set", "max_train_steps=100000", "--set", "checkpointing_steps=100000")
        with start_nullbooth("train", *arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            assert process.stderr is not None
            while not (line := process.stderr.readline()).startswith("train "):
                assert process.poll() is None, line
            process.send_signal(number)
            rest = process.stderr.read()
            assert process.wait() == 128 + number, rest
        assert "finishing and writing the step that runs" in rest
        assert "run the same command again to resume" in rest
        assert "Traceback" not in rest
        found = checkpoint_files.find(str(tmp_path / "out"))
        assert found is not None
        found.require_whole()
        offered = re.search(r"for the model as it is after \d+ steps?: nullbooth (train .*)\n", rest)
        assert offered is not None, rest
        finished = CliRunner().invoke(app, [*shlex.split(offered[1]), "--device", "cpu", "--json"])
        assert finished.exit_code == 0, finished.stderr
        assert json.loads(finished.stdout)["steps"] == found.step
        resumed = self.train(*arguments[:2], "--set", f"max_train_steps={found.step + 1}")
        assert resumed.exit_code == 0, resumed.stderr
        assert f"resumes from step {found.step}\n" in resumed.stderr

    def test_a_signal_while_class_pictures_are_drawn(self, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is unwritten, so it ends at once."""
        handler = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(setup, "draw_class", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        done = self.train("-c", file, "--set", "class_prompts=[a circle]")
        signal.signal(signal.SIGTERM, handler)
        assert done.exit_code == 143
        assert "interrupted" in done.stderr
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.lock"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("-c", "nowhere.yaml"), "no file at nowhere.yaml"),
            (("-c", "FILE", "--set", "learning_rat=1"), "did you mean 'learning_rate' for 'learning_rat'?"),
            (("-c", "FILE", "--set", "store=nowhere.zarr"), "no store at nowhere.zarr"),
            (("-c", "FILE", "--set", "instance_images=nowhere"), "nowhere"),
        ],
    )
    def test_mistakes(self, file: str, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nullbooth_cli.model.load.load_pipeline", None)  # no model is loaded for them
        done = self.train(*(file if part == "FILE" else part for part in arguments))
        assert done.exit_code in (2, 3)
        assert said in done.stderr
        assert "hint:" in done.stderr
