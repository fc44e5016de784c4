"""The oracle: search over latents with the verifier at the leaves. What could the best latents reach?"""

from ollm_rl.oracle.oracle import Oracle
from ollm_rl.oracle.search import FRONTIERS, Search
from ollm_rl.oracle.summary import summarize_searches

__all__ = ["FRONTIERS", "Oracle", "Search", "summarize_searches"]
