"""Rows of networks around attention: adapters, towers of images and texts, variants of transformers."""
