{{- /* Names, labels, images, and what two kinds of Pods share. */ -}}

{{- define "stowage.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "stowage.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Called with (list . COMPONENT): labels that select its Pods, and never change. */ -}}
{{- define "stowage.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* Called with (list . IMAGE), IMAGE being the values of one. */ -}}
{{- define "stowage.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $name := printf "%s/%s" $root.Values.image.registry $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "stowage.operator.serviceAccount" -}}
{{- default (ternary (printf "%s-operator" (include "stowage.fullname" .)) "default" .Values.operator.serviceAccount.create) .Values.operator.serviceAccount.name -}}
{{- end -}}

{{- define "stowage.agent.serviceAccount" -}}
{{- default (ternary (printf "%s-agent" (include "stowage.fullname" .)) "default" .Values.agent.serviceAccount.create) .Values.agent.serviceAccount.name -}}
{{- end -}}

{{- define "stowage.agent.priorityClass" -}}
{{- default (ternary (printf "%s-agent" (include "stowage.fullname" .)) "" .Values.agent.priorityClass.create) .Values.agent.priorityClass.name -}}
{{- end -}}

{{- /* What the restricted Pod Security Standard asks of a container. */ -}}
{{- define "stowage.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* On each CustomResourceDefinition. */ -}}
{{- define "stowage.crdMetadata" -}}
labels:
  {{- include "stowage.labels" . | nindent 2 }}
{{- if .Values.crds.keep }}
annotations:
  helm.sh/resource-policy: keep
{{- end }}
{{- end -}}

{{- /* Egress that operator and agents both need: names, the API server, and where models come from. */ -}}
{{- define "stowage.egress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
- ports:
    {{- range concat .Values.networkPolicy.apiServerPorts .Values.networkPolicy.sourcePorts | uniq }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  to:
    - ipBlock:
        cidr: 0.0.0.0/0
        {{- $except4 := list }}
        {{- range .Values.networkPolicy.exceptAddresses }}{{- if not (contains ":" .) }}{{- $except4 = append $except4 . }}{{- end }}{{- end }}
        {{- with $except4 }}
        except:
          {{- toYaml . | nindent 10 }}
        {{- end }}
    - ipBlock:
        cidr: "::/0"
        {{- $except6 := list }}
        {{- range .Values.networkPolicy.exceptAddresses }}{{- if contains ":" . }}{{- $except6 = append $except6 . }}{{- end }}{{- end }}
        {{- with $except6 }}
        except:
          {{- toYaml . | nindent 10 }}
        {{- end }}
{{- end -}}

{{- /* Where operator and agents find certificates of authorities besides the image's own. */ -}}
{{- define "stowage.authorities.env" -}}
- name: SSL_CERT_DIR
  value: /etc/stowage/authorities
{{- end -}}

{{- define "stowage.authorities.mount" -}}
- name: authorities
  mountPath: /etc/stowage/authorities
  readOnly: true
{{- end -}}

{{- define "stowage.authorities.volume" -}}
- name: authorities
  configMap:
    name: {{ .Values.sources.certificateAuthorities.configMap }}
{{- end -}}

{{- /* One source: Helm merges what is asked for with the default, and a ModelDeployment has exactly one. */ -}}
{{- define "stowage.test.model" -}}
{{- $model := .Values.test.model -}}
{{- if $model.path -}}
{{- toYaml (pick $model "path") -}}
{{- else if $model.http -}}
{{- toYaml (pick $model "http") -}}
{{- else -}}
{{- toYaml (pick $model "huggingFace") -}}
{{- end -}}
{{- end -}}
