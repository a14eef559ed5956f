"""The fixtures that tornadoproxy offers to plugins."""

pytest_plugins = ["tornadoproxy.testing"]
