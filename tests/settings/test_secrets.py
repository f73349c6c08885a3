"""Nothing below storage_options is shown, nor the value of a key that sounds like a secret."""

from pathlib import Path

import pytest

from nullbooth_cli.errors import ConfigError
from nullbooth_cli.settings.config import Config, build_config, load_config
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.settings.secrets import is_secret, shown, without_secrets

WORD = "Pssst"


@pytest.mark.parametrize(
    "key",
    [
        *(
            "storage_options.region=x",
            " storage_options = {}",
            "storage_options",
            "aws_secret_access_key",
            "hf_token",
            "x.password",
        ),
        *("apiKey", "collect.api-key=1", "credentials", "sas", "account_key", "key", "auth", "SECRET", "x.password"),
    ],
)
def test_secrets_are_known_by_their_names(key: str) -> None:
    assert is_secret(key)


def test_no_setting_is_taken_for_a_secret() -> None:
    names = [*Config.model_fields, *Recipe.model_fields]
    names += [f"{name}.{key}" for name in ("schedule", "collect", "project") for key in getattr(Config(), name).model_dump()]
    assert [name for name in names if is_secret(name)] == ["storage_options"]
    assert not is_secret("word=a secret garden"), "only the key counts"


def test_a_value_that_touches_its_key_is_left_out() -> None:
    assert shown(f"secret_access_key:{WORD}") == "secret_access_key..."
    assert shown("collect.images x") == "collect.images x"
    assert without_secrets(["a=1", f" storage_options.key={WORD}", f"my_token={WORD}"]) == ["a=1"]


@pytest.mark.parametrize(
    "text",
    [
        f"storage_options: {WORD}",
        f"storage_options: [{WORD}]",
        f"storage_options:\n  {WORD}",
        f"storage_options:\n  secret:{WORD}",
        f"storage_options: {{secret: {WORD}",
        f'storage_options: {{secret: "{WORD}\\ud800"}}',
        f"storage_option: {{secret: {WORD}}}",
        f"secret_access_key: {WORD}",
        f"aws_secret_access_key={WORD}: 1",
        f"{{secret_access_key:{WORD}: }}",
        f"collect: {{secret_access_key: {WORD}}}",
        f"token: {WORD}\nmodel: [",
        f"storage_options: {{secret: *{WORD}}}",
        f"storage_options: {{secret: !{WORD}}}",
        f"storage_options: {{secret: &{WORD} *{WORD}}}",
        f"storage_options: {{secret: !!{WORD}/x y}}",
        f"store: s3://me:{WORD}@bucket/run.zarr",
        f"model: https://me:{WORD}@host/model",
        f"heldout_prompts: https://{WORD}@host/p.txt",
    ],
)
def test_no_error_repeats_a_secret(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    seen: list[BaseException | None] = [caught.value]
    while seen[-1] is not None:  # a notebook shows what an error came from too
        assert WORD not in f"{seen[-1]} {getattr(seen[-1], 'hint', '')}"
        seen.append(seen[-1].__cause__ or (None if seen[-1].__suppress_context__ else seen[-1].__context__))


@pytest.mark.parametrize(
    "override",
    [
        f"storage_options={WORD}",
        f"storage_options: {WORD}",
        f"storage_options.secret:{WORD}",
        f"storage_options.secret={{{WORD}",
        f"storage_options.secret.{WORD}",
        f"secret_access_key={WORD}",
        f"secret_access_key {WORD}",
        f"collect.token='{WORD}",
        f"storage_options.a=*{WORD}",
    ],
)
def test_no_error_repeats_a_secret_of_the_command_line(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({}, [override])
    assert WORD not in f"{caught.value.message} {caught.value.hint}"


def test_the_text_of_a_config_has_no_secret() -> None:
    assert WORD not in repr(build_config({"storage_options": {"secret": WORD}}))
