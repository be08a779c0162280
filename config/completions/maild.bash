# bash completion for maild; written by `make man`
_maild_accounts() {
    maild status --json 2>/dev/null | sed -n 's/^  "\([^"\]*\)": {.*/\1/p'
}
_maild() {
    local path='' word known=''
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "${path:+$path }$word" in
            'demo'|'account'|'account add'|'account list'|'account passwd'|'account remove'|'login'|'check'|'doctor'|'sync'|'run'|'reload'|'status'|'approve'|'outbox'|'sendmail') path="${path:+$path }$word" ;;
        esac
    done
    case "$path" in
        '') known='demo account login check doctor sync run reload status approve outbox sendmail --help --version --verbose --config' ;;
        'demo') known='--help --keep' ;;
        'account') known='add list passwd remove --help' ;;
        'account add') known='--help --name --maildir --user --pop3 --no-test --yes --imap-host --imap-port --imap-tls --pop3-host --pop3-port --pop3-tls --smtp-host --smtp-port --smtp-tls --ca-file --password-file --password-command --password-keyring --password-credential --oauth2 --password-stdin --client-id --client-secret-file' ;;
        'account list') known='--help --json' ;;
        'account passwd') known='--help --smtp --password-stdin --no-test' ;;
        'account remove') known='--help --yes' ;;
        'login') known='--help --device --browser' ;;
        'check') known='--help --json' ;;
        'doctor') known='--help --json' ;;
        'sync') known='--help --dry-run --send --json' ;;
        'run') known='--help' ;;
        'reload') known='--help' ;;
        'status') known='--help --json --watch' ;;
        'approve') known='--help' ;;
        'outbox') known='list show flush hold release cancel retry --help --json' ;;
        'sendmail') known='' ;;
    esac
    case "$path" in
        'account passwd'|'account remove'|'login'|'doctor'|'sync'|'status'|'approve') known="$known $(_maild_accounts)" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$known" -- "${COMP_WORDS[COMP_CWORD]}")
}
complete -o default -F _maild maild
