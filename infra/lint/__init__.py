"""The validators of everything below infra/ and .github/: `make lint-infra`.

`check` runs one program and tells how it went; each other module lists the checks of one subject.
"""
