"""The page in the browser: authentication, what viewers receive, routes, server. `dashboard` starts it."""
