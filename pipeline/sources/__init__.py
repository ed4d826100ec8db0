"""The places that pictures come from, a module each, named as in `source.name`; nothing else is here."""
