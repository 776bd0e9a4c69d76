"""Which of several models is better for the people who meet them, decided on live traffic.

An *experiment* gives each user one *variant* by a hash of the user's key, so that any number of processes agree without
asking each other. Its definition, who met what (*exposures*) and what came of it (*outcomes*) are in the ledger, or in
the prediction log where versions of one model share its live traffic. The verdict may be looked at as often as one
likes: looking changes no error rate.
"""
