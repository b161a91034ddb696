"""Small whole programs, each started in a process of its own by `cold` and `epoch`; they import one framework each."""
