"""The oracle: search over latents with the verifier at the leaves. What could the best latents reach?"""
