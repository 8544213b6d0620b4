"""Communication: everything that crosses a rank goes through `Communicator`, is checked there, and
is counted.
"""
