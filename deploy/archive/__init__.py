"""Archives of products: many cubes restored by many processes, on one computer or several, and what became of each."""
