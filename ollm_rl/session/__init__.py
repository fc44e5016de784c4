"""A frozen option LM on a task: everything that an agent works with, put together once."""
