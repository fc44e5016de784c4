"""Options for the next token: the plug-in, its conversion, and the policies that choose. Imports no torch."""
