"""The documentation site: what MkDocs asks for, made from the code and from committed results."""
