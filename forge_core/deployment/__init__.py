"""What should be live, and making it so.

The desired serving state is one revisioned row of the ledger. Whoever promotes or rolls back changes that
row; one function composes the whole Serve configuration from it and PUTs it. Nothing else talks to Serve.
"""
