"""Values of any kind."""

from hypothesis import strategies as st

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 10**400])
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["", "cpu", "se", "none", "relu", "SGD", "a.json"]),
    lambda values: (
        st.lists(values, max_size=5) | st.dictionaries(st.text("ab"), values, max_size=2)
    ),
    max_leaves=6,
)
