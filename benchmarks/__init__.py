"""Measurements that anyone can run. Each prints its figures and ends with one line of JSON."""
