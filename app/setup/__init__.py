"""Setting up the environment, for launch.py: standard library only; knows no other part of app."""
