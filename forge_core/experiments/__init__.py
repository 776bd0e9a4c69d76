"""Several versions at work at once, and a sound answer to which is better.

Who gets which variant is a pure hash of a salt and the user's key, so every replica, restart and notebook agrees
without asking anyone, and a variant's share can grow without moving users who need not move. What happened is counted
by variant; what it means is decided by evidence that may be looked at after every visitor, because its chance of ever
naming a winner where there is none is bounded over all looks together. An experiment compares variants that users see;
a rollout compares a new version with the champion, first in the shadow, then on a growing share, and goes back by
itself when the new one does harm.
"""
