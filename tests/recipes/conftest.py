"""Runs on the toy task of `toy`."""

from toy import small_toy_config, small_toy_folder, toy_config, toy_folder

__all__ = ["small_toy_config", "small_toy_folder", "toy_config", "toy_folder"]
