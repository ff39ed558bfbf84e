"""Where rows come from: files, queries, the hub, functions."""
