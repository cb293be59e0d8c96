"""`heirloom recipes`: what comes with the package."""


def recipes() -> None:
    """List the recipes that come with the package.

    Example: heirloom recipes
    """
    from ..training.recipes import read_recipe, recipe_names, recipe_path

    for name in recipe_names():
        print(f"{name:<20} {read_recipe(name).get('about', '')}")
    print(f"\nFiles in {recipe_path(recipe_names()[0]).parent}; copy one, change it, and give its path.")
