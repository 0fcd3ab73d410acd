"""How much every unit of a group matters."""
