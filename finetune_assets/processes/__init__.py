"""Pools, threads and the identity of processes."""
