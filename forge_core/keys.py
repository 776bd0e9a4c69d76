"""API keys as rows of the ledger: a public id, the hash of a secret, whose it is, and what it may do.

The secret is shown once, when the key is made, and never stored. It has 256 random bits, so a plain SHA-256 cannot be
searched (OWASP, Cryptographic Storage).
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from forge_core.errors import ConfigurationError
from forge_core.ledger import Ledger

SCOPES = ("predict", "feedback", "metrics", "admin")

_tables = sa.MetaData()
_keys = sa.Table(
    "keys",
    _tables,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("per_minute", sa.Integer),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expires_at", sa.DateTime(timezone=True)),
    sa.Column("revoked_at", sa.DateTime(timezone=True)),
)


@dataclass(frozen=True)
class Key:
    """One key as it is stored; `admin` includes every scope, `per_minute` counts rows, None sets no limit."""

    id: str
    hash: str
    owner: str
    scopes: frozenset[str]
    per_minute: int | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def may(self, scope: str) -> bool:
        """Tell whether the key has a scope."""
        return scope in self.scopes or "admin" in self.scopes

    def works(self, now: datetime) -> bool:
        """Tell whether the key is neither revoked nor expired."""
        return not any(end is not None and end <= now for end in (self.expires_at, self.revoked_at))


def hash_of(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret() -> str:
    """Return a fresh secret, with the id of its key inside."""
    return f"forge_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def only_key(secret: str) -> Key:
    """Return a key for a service without a ledger, which takes one secret and nothing else."""
    return Key(id_of(secret) or "", hash_of(secret), "the only key", frozenset({"admin"}), None, datetime.now(UTC))


def id_of(secret: str) -> str | None:
    """Return the public id inside a secret, None where it has not the form of one."""
    parts = secret.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "forge" else None


class KeyStore:
    """The keys in a ledger.

    Examples
    --------
    >>> store = KeyStore(Ledger("sqlite://"))
    >>> secret = store.create("ana", ["predict"], per_minute=600)
    >>> key = store.all()[0]
    >>> key.id == id_of(secret), key.hash == hash_of(secret), key.may("predict"), key.may("metrics")
    (True, True, True, False)
    """

    def __init__(self, ledger: Ledger) -> None:
        self.engine = ledger.engine
        _tables.create_all(self.engine)

    def create(
        self,
        owner: str,
        scopes: Iterable[str],
        *,
        per_minute: int | None = None,
        expires_at: datetime | None = None,
    ) -> str:
        """Return the secret of a new key; nothing can show it again.

        Raises
        ------
        ConfigurationError
            For an unknown scope (lists the known ones), no scope, no owner, or a limit below 1.
        """
        wanted = sorted(set(scopes))
        unknown = [scope for scope in wanted if scope not in SCOPES]
        if unknown or not wanted:
            raise ConfigurationError(f"expected scopes among {', '.join(SCOPES)}, found {', '.join(unknown) or 'none'}")
        if not 0 < len(owner) <= 128:
            raise ConfigurationError("expected the name of the key's owner, of 1 to 128 characters")
        if per_minute is not None and per_minute < 1:
            raise ConfigurationError(f"expected a limit of at least 1 row a minute, found {per_minute}")
        secret = new_secret()
        row = {"id": id_of(secret), "hash": hash_of(secret), "owner": owner, "scopes": wanted}
        times = {"created_at": datetime.now(UTC), "expires_at": expires_at}
        with self.engine.begin() as connection:
            connection.execute(sa.insert(_keys).values(**row, **times, per_minute=per_minute))
        return secret

    def adopt(self, secret: str, owner: str, scopes: Iterable[str]) -> bool:
        """Make a key of a secret that exists already, in a cluster's Secret; return whether it was not there.

        A key that is there stays as it is, also one that was revoked.

        Raises
        ------
        ConfigurationError
            For a secret that `new_secret` did not make, one of another key's id, or an unknown scope.
        """
        key_id, wanted = id_of(secret), sorted(set(scopes))
        if key_id is None or len(secret) < 40:
            raise ConfigurationError(
                "expected a key of the form forge_ID_SECRET, found another; make one with `create`"
            )
        if not wanted or not set(wanted) <= set(SCOPES):
            raise ConfigurationError(f"expected scopes among {', '.join(SCOPES)}, found {', '.join(wanted) or 'none'}")
        row = {"id": key_id, "hash": hash_of(secret), "owner": owner, "scopes": wanted, "created_at": datetime.now(UTC)}
        try:
            with self.engine.begin() as connection:
                connection.execute(sa.insert(_keys).values(**row))
            return True
        except sa.exc.IntegrityError:
            (known,) = [key for key in self.all() if key.id == key_id]
            if known.hash != row["hash"]:
                raise ConfigurationError(f"expected the secret of the key {key_id}, found another one") from None
            return False

    def all(self) -> list[Key]:
        """Return every key, the oldest first, revoked and expired ones too."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(_keys).order_by(_keys.c.created_at, _keys.c.id)).mappings().all()
        return [_key(row) for row in rows]

    def revoke(self, key_id: str, now: datetime | None = None) -> Key:
        """End a key at once and return it; one that has ended stays as it is."""
        return self._end(key_id, "revoked_at", now or datetime.now(UTC))

    def rotate(self, key_id: str, until: datetime) -> str:
        """Return the secret of a key like this one, which itself works until a moment."""
        old = self._end(key_id, "expires_at", until)
        return self.create(old.owner, old.scopes, per_minute=old.per_minute)

    def _end(self, key_id: str, column: str, moment: datetime) -> Key:
        end = _keys.c[column]
        earlier = sa.or_(end.is_(None), end > moment)
        with self.engine.begin() as connection:
            connection.execute(sa.update(_keys).where(_keys.c.id == key_id, earlier).values(**{column: moment}))
            row = connection.execute(sa.select(_keys).where(_keys.c.id == key_id)).mappings().one_or_none()
        if row is None:
            known = ", ".join(key.id for key in self.all() if key.works(datetime.now(UTC)))
            raise ConfigurationError(
                f"expected the id of a key, found {key_id[:32]!r}; working keys: {known or 'none'}"
            )
        return _key(row)


def _key(row: Any) -> Key:
    times = {name: _utc(row[name]) for name in ("created_at", "expires_at", "revoked_at")}
    return Key(row["id"], row["hash"], row["owner"], frozenset(row["scopes"]), row["per_minute"], **times)


def _utc(moment: datetime | None) -> Any:
    return moment if moment is None else moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
