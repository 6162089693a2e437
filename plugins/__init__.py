"""The project's extension point, and the folder a user's plugin modules are dropped into.

A plugin is a module with `register(manager)` that calls `manager.add_hook(event, callback)`.
"""

from plugins.manager import HOOK_NAMES, HookOutcome, LoadedPlugin, PluginManager, PluginVeto

__all__ = ["HOOK_NAMES", "HookOutcome", "LoadedPlugin", "PluginManager", "PluginVeto"]
