"""HTML pages that people look at: each one file, which asks nothing of the network.

Templates are Jinja2's, charts are matplotlib's; both come with the extra ``report``.
"""
