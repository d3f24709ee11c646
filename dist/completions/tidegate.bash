# bash completion for tidegate(1)

_tidegate() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command='' word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
            demo | check | health | help) command=$word && break ;;
        esac
    done
    local words
    case $command in
        demo)
            [ "$previous" = --port ] && COMPREPLY=() && return
            words='--port --help'
            ;;
        check) words='--no-database --help' ;;
        health) words='--ready --help' ;;
        help) words='demo check health' ;;
        *) words='demo check health help --no-database --help --version' ;;
    esac
    COMPREPLY=()
    while IFS='' read -r word; do COMPREPLY+=("$word"); done < <(compgen -W "$words" -- "$current")
}

complete -F _tidegate tidegate
