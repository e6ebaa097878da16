"""How a program is spread over devices and processes."""
