"""What every test can take: the fixtures that plugin authors have."""

pytest_plugins = ["tornadoproxy.testing"]
