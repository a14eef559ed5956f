"""All texts of the console."""

PRODUCT = "tornadoproxy"
NONE = "–"  # noqa: RUF001  # a dash in place of a figure
YES, NO = "yes", "no"
SKIP = "Skip to the content"
NAVIGATION = "Pages"

# signing in
SIGN_IN = "Sign in"
SIGN_OUT = "Sign out"
KEY = "Key"
KEY_HINT = "An admin key, or the key with which you use the API."
WRONG_KEY = "This key is not known here. Check that it is complete, and has not been revoked."
ADMINISTRATOR, READER = "administrator", "may only read"

# errors
FAILED = "This did not work"
FORGED = "This form is not from your present session. Open the page again, and repeat what you did."
NOT_FOUND = "There is no such page."
NO_FORM = "The request body is not a form."
BACK = "Back to the first page"

# figures
MODEL, REQUESTS, COST, DAY, PERIOD = "Model", "Requests", "Cost", "Day", "Period"
PERIODS = {"daily": "Today", "weekly": "This week", "monthly": "This month"}
LIMIT, SPENT, LEFT, NO_LIMIT = "Limit", "Spent", "Left", "no limit"
TIME, STATUS, DURATION, TOKENS = "Time (UTC)", "Status", "Duration", "Tokens in / out"
RANGE = "{0} to {1}"
NO_MODEL = "no model"
NO_REQUESTS = "There are no requests."
NO_COSTS = "Nothing was spent in this time."
AS_TABLE = "As a table"

# Me
ME = "Me"
MY_LIMITS = "Spend and limits"
MY_DAYS = "Spend by day"
MY_MODELS = "Spend by model"
MY_REQUESTS = "Last requests"
GROUPS = "Groups"
SET_UP = "Set up a client"
SET_UP_HINT = "Put your key in place of YOUR_KEY. It is not shown here: this page does not know it."
COPY, COPIED = "Copy", "Copied"
NO_LEDGER = "This proxy keeps no ledger."
NO_BUDGETS = "This proxy has no budgets."

# Health
HEALTH = "Health"
WARNINGS = "Warnings of the start"
NO_WARNINGS = "The start warned of nothing."
PLUGINS = "Plugins"
PLUGIN, STATE, VERSION, WHAT = "Plugin", "State", "Version", "What it does"
STORES = "Stores"
NO_STORES = "No plugin uses a database."
STORE, FAILURES, HELD, LOST = "Store", "Failures", "Waiting", "Lost"
WORKS, FAILING = "works", "fails"
SETTINGS = "Settings"
SETTING, VALUE = "Setting", "Value"
DEFAULTS = "Those with their defaults"
SECRET = "set, and not shown"  # noqa: S105
VERSIONS = "Versions"
DRAINING = "This proxy is stopping: it takes no new requests."
PLUGIN_FAILURES = "Failed"
