"""funnel inside other libraries: each module needs the library it is named after, and nothing here imports them."""
