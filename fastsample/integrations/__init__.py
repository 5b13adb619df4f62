"""Drop-ins for other libraries, each importable only where its library is installed."""
