"""Limits on what a user writes: far above what anybody asks for, and low enough that no input exhausts memory or overflows.

docs/reference/config.md lists them.
"""

TEXT_BYTES = 1_000_000_000  # a file of prompts or captions
SETTINGS_BYTES = 4_000_000  # a config, a recipe, a file of edits
LEVELS = 50  # nested values in YAML
EXPANDED = 16_000_000  # characters of a YAML file once every alias is replaced by what it stands for
NAME_BYTES = 255  # one name in a path, as file systems have it
PATH_BYTES = 4096
PROBLEMS = 10  # that an error shows of one file
INTEGER = 2**63  # any number without a limit of its own: 64 bits
STEPS = 100_000  # of denoising
PIXELS = 65_536  # a side of an image
BATCH = 4096  # images or prompts of a forward
RANK = 8192  # of a LoRA
RATE = 1e3  # a learning rate, or a decay
FACTOR = 1e6  # the weight of a loss, a scale of guidance
COUNT = 1_000_000_000  # prompts, tokens, training steps
SEED = 2**32 - 1  # torch's generators take 32 bits
