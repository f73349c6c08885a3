"""Prompts as options name them."""

from nullbooth_cli.commands.prompt_options import prompts_to_use

LONG = "a photo of a dog " * 40


def test_a_prompt_may_be_longer_than_the_name_of_a_file() -> None:
    assert prompts_to_use([f"{LONG}.txt", LONG], None) == (f"{LONG}.txt", LONG)
