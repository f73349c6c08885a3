"""The store that pictures and pages show."""

from dataclasses import dataclass

from nullbooth_cli.datatypes import Prompt, Site
from nullbooth_cli.report.inspection import InspectReport
from nullbooth_cli.report.names import Called, layer_names
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store


@dataclass(frozen=True)
class PictureSource:
    """The store to draw, the config and the prompts that it was finished under, and its report, which lists the sites."""

    config: Config
    store: Store
    prompts: tuple[Prompt, ...]
    report: InspectReport

    @property
    def sites(self) -> list[Site]:
        """The sites that the entries of the report are about."""
        names = {entry.site_name for entry in self.report.sites}
        return [site for site in self.store.sites if site.name in names]

    @property
    def called(self) -> Called:
        """What the layers of these sites are called."""
        return layer_names(layer for site in self.sites for layer, _ in site.projections)
