"""A small spooler: what a program that uses sessionstore looks like."""
