"""The zoo: a tiny random pipeline of every pipeline class of diffusers that is tested, by the name of the class.

tests/end_to_end/test_every_pipeline.py proves each entry, and docs/reference/models.md lists them.
"""

from tests.support.zoo import transformers, unets, video
from tests.support.zoo.entry import Entry

ENTRIES: dict[str, Entry] = {**unets.ENTRIES, **transformers.ENTRIES, **video.ENTRIES}
