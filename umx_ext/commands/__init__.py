"""The subcommands of `umx-ext`, one module each, imported when asked for."""
