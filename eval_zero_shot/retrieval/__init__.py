"""Retrieval between images and texts, and between volumes: ranks without an N x N matrix, pools, intervals."""
