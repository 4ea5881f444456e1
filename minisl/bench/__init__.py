"""Timing minisl beside its peers, in the same run and in turn. One file a question; `__main__` asks them."""
