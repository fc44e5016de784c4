"""`ollm-rl view`: many runs on one page of static files, from the table of all of them to a token of one episode."""
