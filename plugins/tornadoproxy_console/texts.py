"""All texts of the console."""

PRODUCT = "tornadoproxy"
NONE = "–"  # noqa: RUF001  # a dash in place of a figure
YES, NO = "yes", "no"
SKIP = "Skip to the content"
NAVIGATION = "Pages"

# signing in
SIGN_IN = "Sign in"
SIGN_IN_WITH = "Sign in with {}"
SIGN_OUT = "Sign out"
KEY = "Key"
KEY_HINT = "An admin key, or the key with which you use the API."
WRONG_KEY = "This key is unknown. Check that it is complete, and has not been revoked."
ADMINISTRATOR, READER = "administrator", "read-only"

# errors
FAILED = "The request failed"
FORGED = "This form does not belong to your session. Open the page again, and repeat the change."
NOT_FOUND = "There is no such page."
NO_FORM = "The request body is not a form."
BACK = "Back to the first page"

# figures
MODEL, REQUESTS, COST, DAY, PERIOD = "Model", "Requests", "Cost", "Day", "Period"
PERIODS = {"daily": "Today", "weekly": "This week", "monthly": "This month"}
TOKENS_UNIT = "tokens"
LIMIT, SPENT, LEFT, NO_LIMIT = "Limit", "Spent", "Left", "no limit"
LEFT_OF = "{0} left of {1}"
TIME, STATUS, DURATION, TOKENS = "Time (UTC)", "Status", "Duration", "Tokens in / out"
RANGE = "{0} to {1}"
NO_REQUESTS = "There are no requests."
NO_COSTS = "There are no costs in this period."
AS_TABLE = "As a table"

# Me
ME = "Me"
MY_LIMITS = "Spend and limits"
MY_DAYS = "Spend by day"
MY_MODELS = "Spend by model"
MY_REQUESTS = "Last requests"
GROUPS = "Groups"
SET_UP = "Set up a client"
SET_UP_HINT = "Replace YOUR_KEY with your key, which this page does not show."
COPY, COPIED = "Copy", "Copied"
ASK_FOR_MORE = "Ask for a higher limit"
ASK = "Send"
WANTED, REASON = "Wanted limit in dollars", "Reason"
OPTIONAL = "optional"
INCREASE_STATES = {"pending": "not answered yet", "approved": "approved", "denied": "denied"}
NO_LEDGER = "This proxy has no ledger: LEDGER_DB is not set."
NO_BUDGETS = "This proxy has no budgets: BUDGETS_DB is not set."

# Health
HEALTH = "Health"
WARNINGS = "Start-up warnings"
NO_WARNINGS = "There were no warnings."
PLUGINS = "Plugins"
PLUGIN, STATE, VERSION, WHAT = "Plugin", "State", "Version", "What it does"
STORES = "Databases"
NO_STORES = "No plugin uses a database."
STORE, FAILURES, HELD, LOST = "Database", "Failures", "Waiting", "Lost"
WORKS, FAILING = "works", "fails"
SETTINGS = "Settings"
SETTING, VALUE = "Setting", "Value"
DEFAULTS = "Settings with their defaults"
SECRET = "set, not shown"  # noqa: S105  # stands for one
VERSIONS = "Versions"
DRAINING = "This proxy is stopping: it accepts no new requests."
PLUGIN_FAILURES = "Failed"

# what was done
DONE = {
    "saved": "Saved.",
    "removed": "Removed.",
    "asked": "Your request was sent to the administrators.",
    "pending": "Your earlier request for this period is not answered yet, and was not changed.",
    "approved": "Approved.",
    "denied": "Denied.",
}

# Now
NOW = "Now"
IN_FLIGHT, WAITING = "In flight", "{0} of them queued"
STARTED, AWAITING, TOKENS_OUT = "Started (UTC)", "no response yet", "Tokens out"
NONE_IN_FLIGHT = "There are no requests in flight."
UPSTREAM_STATES = {"well": "works", "resting": "rests", "probing": "is tried again"}
PER_SECOND, ERRORS = "Requests a second", "Errors, last minute"
FIRST_TOKEN, FIRST_BYTE = "Time to first token", "Time to first byte"
UPSTREAMS, RESULTS = "Upstreams", "Responses and failures"
ENDED_LAST = "Ended last"
LIVE, LOST_CONTACT = "live", "not live: reconnecting"
TOO_MANY_READERS = "Too many live pages are open. Close one, or try again."

# Spend
SPEND = "Spend"
BY = "By"
PERSON, GROUP, NAME = "Person", "Group", "Name"
SPEND_BY = {"person": "Spend by person", "group": "Spend by group", "model": "Spend by model"}
TITLES = {"person": PERSON, "group": GROUP, "model": MODEL}
FROM, TO = "From", "To"
SHOW = "Show"
AS_CSV = "Download CSV"
MORE = "Only the 1,000 highest are shown; the CSV file has all."
WRONG_RANGE = "From and To: choose at most {} days, the earlier one first, not in the future."
WRONG_AMOUNT = "Limit: an amount in dollars with at most two decimals, or nothing for no limit."
NAME_OF_EVERYONE = "Name: leave it empty for everybody."
CAPS = "Limits"
CAPS_HINT = "A person's own limit takes precedence over a group's, and a group's over everybody's."
SCOPE, AMOUNT = "For", "Limit in dollars"
SHARED_HINT = "one limit for the whole group together"
CAP_NAME_HINT = "of the person or group"
SCOPES = {"organization": "Everybody", "rbac_group": "Group", "user": "Person"}
EVERY = {"daily": "a day", "weekly": "a week", "monthly": "a month"}
INCREASES = "Requests for a higher limit"
ASKED_FOR, NEW_LIMIT = "Asks for", "New limit in dollars"
APPROVE, DENY = "Approve", "Deny"
NO_CAPS = "There are no limits."
SAVE, REMOVE, SET_CAP = "Save", "Remove", "Set a limit"
TOP_PEOPLE = "Highest spend"
NEXT = "Next page"
TOGETHER = "shared"

# People
PEOPLE = "People"
CREATE = "Create a key"
NEW_KEY = "The new key"
OPEN_PERSON = "Open the page of {0}"
SHOWN_ONCE = "Copy it now: it is not stored, and cannot be shown again."
STATUSES = {
    "active": "active",
    "inactive": "disabled",
    "expired": "expired",
    "archived": "revoked",
}
ANY = "any"
SEARCH = "Search"
NAME_HINT = "The whole name of the key's owner"
MODELS, LIMITS, LAST_USED, CREATED = "Models", "Limits", "Last used", "Created"
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
NO_KEYS_DB = "This proxy has no keys: KEYS_DB is not set."
ALL_MODELS = "all models"
KEYS = "Keys"
ROTATE, REVOKE, DISABLE, ENABLE = "Rotate", "Revoke", "Disable", "Enable"
REVOKE_IT = "Revoke this key"
REVOKE_HINT = "Requests with this key are refused at once. A revoked key cannot be enabled again."
GRACE = "The old key stays valid for"
GRACES = {0: "no time", 3600: "an hour", 86_400: "a day", 604_800: "a week"}
ALL_THEIR_REQUESTS = "All their requests"

# Requests
REQUEST = "Request"
REQUEST_ID = "Request id"
ALL_REQUESTS = "include requests without a person"
STATUS_HINT = "200, success, error"
ATTEMPTS, UPSTREAM = "Attempts", "Upstream"
NO_ATTEMPTS = "This request was sent to no upstream."
ATTEMPT_SENT = "Responded"
DETAILS = "Details"
RECORDING = "Recording"
PARTS = {"request": "Request", "response": "Response"}
BINARY = "[binary]"
INCOMPLETE = "[the rest was not recorded]"
NO_RECORDING = "There is no recording of this request."
RECORDING_HIDDEN = "Read-only administrators cannot see recordings."
