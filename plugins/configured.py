"""The plugins a configuration asks for."""

from __future__ import annotations

from pathlib import Path

from plugins.manager import PluginManager
from shared.settings import Settings

INSTALLATION = Path(__file__).resolve().parent.parent


def configured_plugins(settings: Settings) -> PluginManager:
    """A manager with everything the settings name, loaded.

    A relative `plugins.plugin_dir` is taken from the installation, never from the current folder: a folder called
    `plugins` that happens to lie where a command is started is not an invitation to run it.
    """
    manager = PluginManager()
    manager.discover(None)
    folder = INSTALLATION / Path(settings.plugins.plugin_dir).expanduser()
    manager.discover(folder, enabled=settings.plugins.enabled)
    return manager
