"""A blind study with people (paper v3, Sec. 5.3): a page to choose the best image on, and what the choices say."""
