"""Reading image files: whole, upright, 8 bits, one size."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.images import read_image, require_readable
from tests.support.pictures import picture


class TestPictures:
    @given(kind=st.sampled_from(["png", "jpeg", "webp"]), share=st.floats(0, 0.999))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_file_that_is_cut_off_is_refused_or_whole(self, tmp_path: Path, kind: str, share: float) -> None:
        """Only end marks may be missing without a word: then every pixel is there."""
        whole = io.BytesIO()
        picture(0).save(whole, format=kind)
        expected = np.array(Image.open(whole))
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
        found = None
        with contextlib.suppress(ConfigError):
            found = read_image(path)
        if found is not None:
            np.testing.assert_array_equal(found, expected)
            return
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            read_image(path)

    def test_one_damaged_byte_does_not_pass_as_another_error(self, tmp_path: Path) -> None:
        whole = io.BytesIO()
        picture(0).save(whole, format="png")
        for place in range(0, len(whole.getvalue()), 97):
            damaged = bytearray(whole.getvalue())
            damaged[place] ^= 0xFF
            (tmp_path / "x.png").write_bytes(damaged)
            with pytest.raises(ConfigError, match=r"cannot read the image .*x\.png"):
                read_image(tmp_path / "x.png")

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
    def test_every_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
        picture(0).convert(mode).save(path)
        assert read_image(path).mode == "RGB"

    def test_sixteen_bits_are_not_cut_to_eight(self, tmp_path: Path) -> None:
        Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60).save(tmp_path / "x.png")
        with pytest.raises(ConfigError, match=r"x\.png has more than 8 bits a channel"):
            read_image(tmp_path / "x.png")

    def test_a_camera_that_was_held_upright(self, tmp_path: Path) -> None:
        """Orientation 6: what is stored is to be turned a quarter clockwise."""
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(0, 40, 24).save(tmp_path / "x.png", exif=exif)
        found = read_image(tmp_path / "x.png")
        assert found.size == (24, 40)
        np.testing.assert_array_equal(found, np.rot90(np.array(picture(0, 40, 24)), -1))

    def test_all_of_one_size(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"{i}.png" for i in range(3)]
        for path, width in zip(paths, (32, 32, 48), strict=True):
            picture(0, width).save(path)
        assert require_readable(paths[:2]) == (32, 32)
        with pytest.raises(ConfigError, match=r"2\.png is 48 x 32 pixels, .*0\.png is 32 x 32"):
            require_readable(paths)


class Seen:
    """What the denoiser is given in every forward: its latents and its timestep."""

    def __init__(self, pipe: Any) -> None:
        self.latents: list[torch.Tensor] = []
        self.timesteps: list[float] = []
        self._handle = load.denoiser_of(pipe).register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _: Any, inputs: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        first = inputs[0] if inputs else arguments["hidden_states"]
        self.latents.append(first.clone())
        self.timesteps.append(float((inputs[1] if len(inputs) > 1 else arguments["timestep"]).flatten()[0]))

    def remove(self) -> None:
        self._handle.remove()


def walk(pipe: Any, tmp_path: Path, strategy: str | None, num_steps: int, size: int, rows: list[int], **collect: Any) -> Any:
    """(what the denoiser saw, the steps, the images' latents `[B, C, h, w]` by plain calls) of images in some rows."""
    folder = photos(tmp_path / "photos", PROMPTS[: len(rows)], width=size, height=size)
    section = {"latents": "images", "images": str(folder), "height": size, "width": size, "guidance_scale": 1.0, "seed": 5}
    config = build_config(
        {
            "schedule": {"num_denoising_steps": num_steps, "sampler_strategy": strategy, "timestep_mode": "all_steps"},
            "collect": {**section, **collect},
        }
    )
    shipped = pipe.scheduler
    scheduler = build_scheduler(strategy, shipped)
    if scheduler.config.get("use_dynamic_shifting"):
        scheduler = type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False)
    steps = compute_schedule(strategy, scheduler, num_steps)
    seen = Seen(pipe)
    try:
        path = path_of(config, steps, pipe)
        held = pipe.scheduler
        result = denoise(pipe, path, list(zip(rows, load_captions(str(folder)), strict=True)))
        assert pipe.scheduler is held
        assert "prepare_latents" not in vars(pipe)
    finally:
        seen.remove()
        pipe.scheduler = shipped
    pixels = torch.stack([torch.tensor(np.array(picture(i, size, size))).permute(2, 0, 1) for i in range(len(rows))])
    with torch.no_grad():
        clean = pipe.vae.float().encode(pixels.float() / 127.5 - 1).latent_dist.mean
    return seen, steps, clean, result


def noise(clean: torch.Tensor, rows: list[int], num_steps: int) -> list[torch.Tensor]:
    """One draw a step from the generator of each row, `[B, C, h, w]` each."""
    generators = [torch.Generator().manual_seed(5 + row) for row in rows]
    return [torch.stack([torch.randn(clean.shape[1:], generator=g) for g in generators]) for _ in range(num_steps)]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """float32 of the scheduler against float64 here."""
    np.testing.assert_allclose(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance * float(expected.abs().max()))


class TestWhatTheDenoiserSees:
    """A variance-preserving model sees (x + sigma e) / sqrt(1 + sigma^2), a flow-matching one (1 - sigma) x + sigma e.

    Whether a scheduler keeps its latents that way or scales them before the model, the sigma stored with the step says all.
    """

    # 80 Karras steps come to timestep 1 twice, with two sigmas.
    @pytest.mark.parametrize(
        ("strategy", "num_steps"),
        [(None, 4), ("DDIM", 4), ("DPM++ 2M Karras", 80), ("DPM++ 3M SDE Karras", 4), ("Euler", 4), ("Euler a", 4), ("UniPC", 4)],
    )
    def test_on_the_toy(self, pipe: Any, tmp_path: Path, strategy: str | None, num_steps: int) -> None:
        rows = [3, 9]
        seen, steps, clean, result = walk(pipe, tmp_path, strategy, num_steps, 32, rows)
        assert seen.timesteps == [pytest.approx(step.timestep) for step in steps]
        assert (len(set(seen.timesteps)) < num_steps) == (num_steps == 80)
        for step, found, drawn in zip(steps, seen.latents, noise(clean, rows, num_steps), strict=True):
            close(found, (clean + step.sigma * drawn) / (1 + step.sigma**2) ** 0.5, 1e-4)
        close(result, clean)

    @pytest.mark.parametrize(
        ("name", "strategy", "size"), [("sd1", "model", 16), ("sdxl", "Euler", 16), ("lcm", "LCM", 16), ("pixart", "UniPC", 256)]
    )
    def test_on_other_models_with_their_scaling(self, tmp_path: Path, name: str, strategy: str, size: int) -> None:
        torch.manual_seed(0)
        pipe = load.freeze(PIPELINES[name]())
        mean, std = [0.1, -0.2, 0.3, 0.0], [1.5, 2.0, 0.5, 1.0]
        if name == "sdxl":
            pipe.vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=0.5)
        seen, steps, clean, _ = walk(pipe, tmp_path, strategy, 3, size, [0])
        if name == "sdxl":
            clean = (clean - torch.tensor(mean).view(1, 4, 1, 1)) * 0.5 / torch.tensor(std).view(1, 4, 1, 1)
        else:
            clean = clean * 0.18215
        assert len(steps) == (4 if name == "sd1" else 3)  # PNDM walks one step more
        for step, found, drawn in zip(steps, seen.latents, noise(clean, [0], len(steps)), strict=True):
            close(found, (clean + step.sigma * drawn) / (1 + step.sigma**2) ** 0.5, 1e-4)

    @pytest.mark.parametrize("name", ["sd3", "flux"])
    def test_flow_matching(self, tmp_path: Path, name: str) -> None:
        """Flux takes a 2 x 2 patch of 4 channels as one token of 16; the tests say in which order by themselves."""
        torch.manual_seed(0)
        pipe = load.freeze(PIPELINES[name]())
        pipe.vae.register_to_config(scaling_factor=1.5, shift_factor=0.06)
        if name == "flux":
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, use_dynamic_shifting=False)
        seen, steps, clean, _ = walk(pipe, tmp_path, "model", 3, 16, [2, 4])
        clean = (clean - 0.06) * 1.5
        for step, found, drawn in zip(steps, seen.latents, noise(clean, [2, 4], 3), strict=True):
            expected = (1 - step.sigma) * clean + step.sigma * drawn
            if name == "flux":
                patches = [expected[:, :, y : y + 2, x : x + 2].flatten(1) for y in range(0, 8, 2) for x in range(0, 8, 2)]
                expected = torch.stack(patches, dim=1)
            close(found, expected)

    def test_guidance_doubles_them_as_on_the_path(self, pipe: Any, tmp_path: Path) -> None:
        seen, steps, clean, _ = walk(pipe, tmp_path, None, 2, 32, [0, 1], guidance_scale=4.0)
        expected = (clean + steps[1].sigma * noise(clean, [0, 1], 2)[1]) / (1 + steps[1].sigma ** 2) ** 0.5
        close(seen.latents[1], torch.cat([expected, expected]), 1e-4)

    def test_in_half_precision_they_are_encoded_in_float32(self, tmp_path: Path) -> None:
        half = load.load_pipeline(
            "toy", revision=None, variant=None, dtype="bfloat16", local_files_only=True, device=torch.device("cpu")
        )
        weights = half.vae.encoder.conv_in.weight.clone()
        folder = photos(tmp_path / "photos", PROMPTS[:1])
        config = build_config({"schedule": {"num_denoising_steps": 2}, "collect": {"latents": "images", "images": str(folder)}})
        steps = compute_schedule("DPM++ 2M Karras", build_scheduler("DPM++ 2M Karras", half.scheduler), 2)
        encoded: list[torch.dtype] = []
        handle = half.vae.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0].dtype))
        seen = Seen(half)
        denoise(half, path_of(config, steps, half), [(0, load_captions(str(folder))[0])])
        handle.remove()
        seen.remove()
        assert encoded == [torch.float32]
        assert {latents.dtype for latents in seen.latents} == {torch.bfloat16}
        assert half.vae.dtype == torch.bfloat16
        assert torch.equal(half.vae.encoder.conv_in.weight, weights)


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

    def test_an_autoencoder_that_is_not_known(self, tmp_path: Path) -> None:
        made = load.freeze(PIPELINES["sd1"]())
        made.vae = None
        with pytest.raises(ConfigError, match="how StableDiffusionPipeline makes latents of images is not known") as caught:
            walk(made, tmp_path, None, 2, 16, [0])
        assert "collect.latents to path" in caught.value.hint

    def test_latents_of_another_shape(self, tmp_path: Path) -> None:
        made = load.freeze(PIPELINES["sd1"]())
        made.vae_scale_factor = 4
        with pytest.raises(ConfigError, match=r"takes latents of shape \[1, 4, 4, 4\], and images of 16 x 16 pixels give"):
            walk(made, tmp_path, None, 2, 16, [0])

    @pytest.mark.parametrize(
        ("data", "message", "hint"),
        [
            ({"collect": {"latents": "images"}}, "collect: latents is images, but images names no folder", "set collect.images"),
            (
                {"collect": {"images": "photos"}},
                "collect: images names a folder, but latents is path",
                "collect.latents to images",
            ),
            (
                {"collect": {"latents": "images", "images": "photos"}, "heldout_prompts": ["x"]},
                "c.yaml: collect.latents is images, and heldout_prompts have no images",
                "compare the two stores",
            ),
        ],
        ids=["no folder", "no need of it", "held-out prompts"],
    )
    def test_settings_that_do_not_fit(self, data: dict[str, Any], message: str, hint: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            build_config(data, source="c.yaml")
        assert hint in caught.value.hint


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
            lambda pipe, path, members: (ran.extend(prompt for _, prompt in members), denoise(pipe, path, members))[1],
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
        (folder / "5.png").write_bytes(b"no image")
        every = findings(config)
        refused(every["images"], "5.png", "save it again")
        assert not every["probe"].checked
        (folder / "5.txt").unlink()
        refused(findings(config)["prompts"], "5.png has no caption")
        shutil.rmtree(folder)
        photos(folder, PROMPTS, width=64, height=64)
        refused(findings(config)["probe"], "0.png is 64 x 64 pixels, and the pipeline runs at 32 x 32")
