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

# what was done
DONE = {"saved": "Saved.", "removed": "Removed."}

# Now
NOW = "Now"
IN_FLIGHT, WAITING = "In flight", "Waiting"
PER_SECOND, ERRORS = "Requests a second", "Errors, last minute"
FIRST_TOKEN, FIRST_BYTE = "Time to first token", "Time to first byte"
UPSTREAMS, RESULTS = "Upstreams", "Results"
ENDED_LAST = "Requests that ended last"
LIVE, LOST_CONTACT = "live", "not live: trying to reach the proxy"
TOO_MANY_READERS = "Too many live pages are open. Close one, or try again."

# Spend
SPEND = "Spend"
BY_PERSON, BY_GROUP, BY_MODEL = "person", "group", "model"
BY = "By"
PERSON, GROUP, NAME = "Person", "Group", "Name"
TITLES = {"person": PERSON, "group": GROUP, "model": MODEL}
FROM, TO = "From", "To"
SHOW = "Show"
AS_CSV = "As CSV"
MORE = "Only the 1,000 highest are shown; the CSV file has all."
WRONG_RANGE = "From and To: choose at most {} days, the earlier one first."
WRONG_AMOUNT = "Limit: an amount in dollars with at most two decimals, or nothing for no limit."
NAME_OF_EVERYONE = "Name: leave it empty for everybody."
CAPS = "Limits"
CAPS_HINT = "The limit of a person counts before that of a group, and that before everybody's."
SCOPE, SHARED, AMOUNT = "For", "Together", "Limit in dollars"
SHARED_HINT = "all together, and not each"
SCOPES = {"organization": "Everybody", "rbac_group": "Group", "user": "Person"}
EVERY = {"daily": "a day", "weekly": "a week", "monthly": "a month"}
NO_CAPS = "There are no limits."
SAVE, REMOVE, SET_CAP = "Save", "Remove", "Set a limit"
TOP_PEOPLE = "Who spent most"
NEXT = "Next page"
TOGETHER = "together"

# People
PEOPLE = "People"
CREATE = "Create a key"
NEW_KEY = "The new key"
SHOWN_ONCE = "Copy it now: it is shown this once, and stored nowhere."
STATUSES = {
    "active": "active",
    "inactive": "disabled",
    "expired": "expired",
    "archived": "revoked",
}
ANY = "any"
SEARCH = "Search"
NAME_HINT = "The whole name of the key's owner"
MODELS, LIMITS, LAST_USED, CREATED = "Models", "Limits", "Last use", "Created"
EXPIRES = "Valid until"
WORDS_HINT = "separated by commas; nothing for all models"
GROUPS_HINT = "separated by commas"
COUNTS = {
    "requests_per_minute": "Requests a minute",
    "tokens_per_minute": "Tokens a minute",
    "concurrency": "Requests at once",
}
WRONG_COUNT = "{}: a whole number, or nothing for no limit."
NO_KEYS = "There are no such keys."
NO_KEYS_DB = "This proxy has no keys of its own."
ALL_MODELS = "all models"
KEYS = "Keys"
ROTATE, REVOKE, DISABLE, ENABLE = "Rotate", "Revoke", "Disable", "Enable"
GRACE = "The old key stays valid for"
GRACES = {0: "no time", 3600: "an hour", 86_400: "a day", 604_800: "a week"}
CHANGE = "Change"
ALL_THEIR_REQUESTS = "All their requests"

# Requests
REQUEST = "Request"
REQUEST_ID, SESSION = "Request id", "Session"
ALL_REQUESTS = "also without a person"
STATUS_HINT = "A number, success or error"
ATTEMPTS, UPSTREAM = "Attempts", "Upstream"
ATTEMPT_FAILED = "Failed"
ATTEMPT_SENT = "Its response was sent"
DETAILS = "Details"
RECORDING = "Recording"
PARTS = {"request": "Request", "response": "Response"}
BINARY = "[binary]"
INCOMPLETE = "[not recorded to its end]"
NO_RECORDING = "The recorder has no recording of it."
