"""What kohya's sd-scripts import by `--network_module nullbooth_cli.kohya`."""

from nullbooth_cli.integrations.kohya import create_network, create_network_from_weights

__all__ = ["create_network", "create_network_from_weights"]
