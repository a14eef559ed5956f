"""A request's life: who sends it, whether it may go on, and the response."""
